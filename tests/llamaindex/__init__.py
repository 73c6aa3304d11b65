"""What the tests of FallbackLLM are made of."""
