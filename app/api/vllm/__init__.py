"""Routes of the process of an inference engine: of the internal API server alone."""
