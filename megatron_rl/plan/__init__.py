"""What a recipe needs and how long its step takes, told before any GPU is used."""
