"""What a run's files say: pure functions of records and probes, without torch and without a model."""
