"""Questions about networks, answered by measurement. Imports run down to training, never up to the verbs."""
