"""What a method is: descriptions only, nothing runs here."""
