"""The ledger: a batch from upload to download, with no model in sight."""
