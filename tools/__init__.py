"""Start brokers and lessons: what `make`, the tests and the benchmarks use."""
