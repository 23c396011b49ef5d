"""Speech heads of multi-token prediction, one class per kind."""
