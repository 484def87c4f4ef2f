"""Photos in folders and at addresses: found, labelled, decoded."""
