"""Visual prompts: their types, their maps and coordinates, and reading what users give."""
