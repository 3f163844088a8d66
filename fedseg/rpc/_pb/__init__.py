"""Generated from protos/fedseg/v1 by `make proto`."""
