"""The wire: who may connect (X.509, mutual TLS, invites), and how messages are read and written."""
