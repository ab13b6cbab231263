"""What a run did and cost: records, tables, figures."""
