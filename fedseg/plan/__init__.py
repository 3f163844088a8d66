"""The study plan: what all parties agree on, typed and frozen. A plan is data, never code. Pure."""
