"""One module per question: `python -m benchmarks.<name>`, with `--quick` to see whether it still runs."""
