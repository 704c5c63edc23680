"""Visual prompts: their types, maps and coordinates, and how users and files specify them."""
