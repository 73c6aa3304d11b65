"""Builds the tiny GGUF that llm-fallback ships: corpus, training, export, evaluation.

Run the whole pipeline with ``python -m tools.tiny_model``; see ``shared_core/models/README.md`` for what comes out.
"""
