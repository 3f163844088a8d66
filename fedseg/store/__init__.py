"""What must survive: journals, the privacy ledger, checkpoints and the study's database."""
