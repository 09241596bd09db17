"""What a prediction says: one JSON document (docs/json.md), a table for the terminal, a figure."""
