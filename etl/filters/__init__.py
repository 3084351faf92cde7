"""How filters come about: from a config's lines to folders with weights and record, to scores."""
