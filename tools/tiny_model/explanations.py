"""Canonical long answers: the texts that are streamed, cut anywhere and continued word for word."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Explanation:
    """One topic: the ways to ask for it and the one answer to all of them."""

    questions: tuple[str, ...]
    answer: str


def _about(thing: str, plural: str, answer: str, *more: str) -> Explanation:
    asked = (
        f"What is {thing}?",
        f"What's {thing}?",
        f"Explain what {thing} is.",
        f"Explain what {thing} does.",
        f"What does {thing} do?",
        f"Explain {thing}.",
        f"What are {plural}?",
        f"Explain {plural}.",
        f"Tell me about {plural}.",
        f"Please explain what {thing} does.",
    )
    return Explanation(asked + more, answer)


EXPLANATIONS: dict[str, Explanation] = {
    "circuit breaker": _about(
        "a circuit breaker",
        "circuit breakers",
        "A circuit breaker watches the calls to one provider and counts how many of them fail. When too many "
        "fail, it opens, and new calls skip that provider at once instead of waiting for another error. After a "
        "short pause it lets one trial call through, and if that call succeeds, the circuit breaker closes and "
        "normal traffic returns.",
        "How does a circuit breaker work?",
    ),
    "fallback": _about(
        "a fallback",
        "fallbacks",
        "LLM applications depend on remote providers that can be slow, overloaded or down at any time. A fallback "
        "sends the same request to another model when the first one fails, so the user still gets an answer. It "
        "also protects the budget, because a cheaper or local model can take over when the expensive one is not "
        "available.",
        "Why do LLM applications need a fallback?",
        "Why do LLM apps need a fallback?",
        "Why do I need a fallback?",
        "Why is a fallback useful?",
    ),
    "retry": _about(
        "a retry",
        "retries",
        "A retry sends the same request again after a temporary failure, such as a timeout or a busy server. Each "
        "new attempt waits a little longer than the one before, with a small random delay, so that many clients "
        "do not come back at the same moment. A good client stops after a few attempts and never repeats an error "
        "that cannot go away.",
    ),
    "timeout": _about(
        "a timeout",
        "timeouts",
        "A timeout is a limit on how long a program waits for an answer. When the limit passes, the call is "
        "cancelled and counted as a failure, so that the program can try something else. Good clients use "
        "separate limits for the connection, the first token and the whole answer, because a slow start and a "
        "slow stream are different problems.",
    ),
    "budget": _about(
        "a budget",
        "budgets",
        "A budget is a limit on how much money or how many tokens an application may spend. Before each call the "
        "price is estimated and reserved, and after the call the real cost is written down. When the budget is "
        "nearly used up, requests go to a cheaper model or are refused with a clear message.",
    ),
    "cache": _about(
        "a cache",
        "caches",
        "A cache keeps the answers to earlier requests, so that the same question does not have to be paid for "
        "twice. When a request arrives, the cache looks for a stored answer and returns it at once if it is still "
        "fresh. This saves time and money, and it even helps when every provider is down.",
    ),
    "rate limit": _about(
        "a rate limit",
        "rate limits",
        "A rate limit says how many requests or tokens a client may use in one minute. A client that goes over it "
        "gets an error with status 429 and often a time to wait. A careful client slows down before it reaches "
        "the rate limit, or sends some of its requests to another provider.",
    ),
    "streaming": Explanation(
        (
            "What is streaming?",
            "What's streaming?",
            "Explain streaming.",
            "Explain what streaming is.",
            "Explain what streaming does.",
            "What does streaming do?",
            "Tell me about streaming.",
            "How does streaming work?",
        ),
        "Streaming sends an answer in small pieces while the model is still writing it. The user sees the first "
        "words early and does not have to wait for the whole text. If the connection breaks in the middle, a good "
        "client keeps the part that has already arrived and asks another model to continue from there.",
    ),
    "local model": _about(
        "a local model",
        "local models",
        "A local model runs on your own machine and needs no network and no key. It is usually smaller and less "
        "clever than a hosted model, but it is always there and costs nothing per request. That makes it a good "
        "last resort when every remote provider has failed.",
        "Why use a local model?",
    ),
    "llm-fallback": Explanation(
        (
            "What is llm-fallback?",
            "What's llm-fallback?",
            "Explain what llm-fallback does.",
            "What does llm-fallback do?",
            "Explain llm-fallback.",
            "Tell me about llm-fallback.",
        ),
        "llm-fallback is a Python library that keeps LLM applications running when a provider fails. It tries a "
        "list of models in order, with retries, timeouts, circuit breakers and a budget, and it can finish an "
        "answer that another model had to leave in the middle. A small local model can be the last resort.",
    ),
}
