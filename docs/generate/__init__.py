"""What of the documentation is made by programs: tables, references, pictures."""
