"""What this project costs in time and memory, beside the machine's limit and what people would otherwise run."""
