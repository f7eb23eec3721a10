"""Reading results: records in, tables and exports out. Nothing here imports torch."""
