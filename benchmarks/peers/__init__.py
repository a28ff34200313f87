"""What runs in processes of its own during `benchmarks/mntp.py`, one of them in llm2vec's environment."""
