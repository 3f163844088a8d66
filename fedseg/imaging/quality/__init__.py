"""The data check: would these scans do, and what is wrong with which? One module a concern, `check` runs them all."""
