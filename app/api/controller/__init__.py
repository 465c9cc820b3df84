"""Routes about a coordinator of several servers: of the internal API server alone."""
