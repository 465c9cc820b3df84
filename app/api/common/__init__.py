"""Routes of any process of ours."""
