"""What a rule keeps, at any size: its language, exact cuts, draws, receipts; selections explained and compared."""
