"""What a technique is, how it is found, called, recorded and resumed."""
