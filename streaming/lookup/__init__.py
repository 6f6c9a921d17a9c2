"""What became of one image: its outcomes in tables and topics, and what receipts and ledgers say of it; no Spark."""
