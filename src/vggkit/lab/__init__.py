"""What a network would do, measured: the doctor. Imports run down to training, never up to the verbs."""
