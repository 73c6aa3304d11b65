"""When a target's file is downloaded: where somebody waits for it on purpose, or in the background; never in a request.

    building a router    nothing is asked of the network, whatever is missing
    warm(), awarm()      the file is fetched, however long that takes, and then loaded
    standby=             the same in the background, from when the router is built
    a request            is refused at once as one that this target cannot serve *yet*; the download goes on without it

The option `download` narrows this down.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shared_core.errors import ConfigurationError, ErrorKind, MissingDependency, ProviderError
from shared_core.models.gguf import ModelFile, check_model_file
from shared_core.models.hub import download, installed, running_download
from shared_core.models.names import HubModel
from shared_core.models.places import ModelNotHere, resolve
from shared_core.providers.llama_cpp.options import Options
from shared_core.resilience.health import SelfReport

__all__ = ["ahead", "check", "fetch", "look", "refusal", "state"]


def look(model: str) -> ModelFile | None:
    """The model's file; None while a hub's file is not here.

    Raises:
        InvalidModelFile: it is broken, or a path or name that leads nowhere.
    """
    try:
        return check_model_file(resolve(model))
    except ModelNotHere:
        return None


def check(model: str, options: Options) -> None:
    """Refuse what cannot work, with or without a download. Asks nothing of the network.

    Raises:
        InvalidModelFile: the file is broken; or it is not here, and `download` is 'never'.
        MissingDependency: it is not here, and what downloads it is not installed.
    """
    if look(model) is not None:
        return
    if options.download == "never":
        resolve(model)  # which says what to do
    if not installed():
        raise MissingDependency(
            f"llamacpp:{model} is to be downloaded, which needs the huggingface-hub package.\n"
            'hint: pip install "llm-fallback[local]", or give the path of a file'
        )


def fetch(model: str, options: Options, timeout_s: float | None = None) -> None:
    """Have the file here, downloading it if need be. Waits.

    Raises:
        DownloadFailed: it cannot be had; the message says why and what to do.
        ModelNotHere: `download` is 'never'.
        ProviderError: it was not here within `timeout_s`; the download goes on.
    """
    if look(model) is not None or (wanted := HubModel.of(model)) is None:
        return
    if options.download == "never":
        resolve(model)  # which says what to do
    running = download(wanted, again=True)
    if not running.wait(timeout_s):
        raise ProviderError.of(ErrorKind.TIMEOUT, f"the local model is still being downloaded: {running.progress}")


def ahead(model: str, options: Options, then: Callable[[], object]) -> None:
    """Begin to download the file, in the background, and call `then` when it is here.

    Raises:
        ProviderError: the option `download` forbids it.
    """
    wanted = HubModel.of(model)
    if wanted is None or options.download == "never":
        raise ProviderError.of(ErrorKind.INCAPABLE, f"{model} is not on this machine", code="not_downloaded")
    download(wanted).then(then)


def state(model: str) -> SelfReport | None:
    """What to report of a model whose file is not here; None when it is."""
    if look(model) is not None or (wanted := HubModel.of(model)) is None:
        return None
    running = running_download(wanted)
    if running is None:
        return SelfReport({"state": "not downloaded"}, f"{wanted} is not on this machine yet")
    if running.error is not None:
        return SelfReport({"state": "not downloaded"}, str(running.error).partition("\n")[0])
    progress = running.progress
    facts = {"done": progress.done, "total": progress.total} if progress is not None else {}
    return SelfReport({"state": "downloading", **facts}, f"{wanted} is being downloaded")


def refusal(model: str, options: Options, reason: ModelNotHere) -> ProviderError:
    """What a request gets while the file is not here: not a sick target, but one that cannot serve it yet.

    Unless the option forbids it, this starts the download; one that failed is tried again after a minute.
    """
    wanted = HubModel.of(model)
    if wanted is None or options.download != "background":
        return ProviderError.of(ErrorKind.INCAPABLE, str(reason).partition("\n")[0], code="not_downloaded",
                                hint=str(reason).partition("hint: ")[2] or None)  # fmt: skip
    running = download(wanted)
    if running.error is not None:
        said, _, hint = str(running.error).partition("\nhint: ")
        said = f"{said} (tried {time.monotonic() - running.ended_at:.0f} s ago)"
        kind = ErrorKind.CONFIG if isinstance(running.error, ConfigurationError) else ErrorKind.INCAPABLE
        return ProviderError.of(kind, said, code="not_downloaded", hint=hint or None)
    so_far = f"so far {running.progress}" if running.progress is not None else "it has just begun"
    return ProviderError.of(
        ErrorKind.INCAPABLE,
        f"the local model is not ready: {wanted} is being downloaded, {so_far}",
        code="not_downloaded",
        hint="fetch it beforehand: llm-fallback models pull, or warm() the router",
    )
