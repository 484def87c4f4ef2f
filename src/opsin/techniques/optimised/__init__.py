"""Pictures that make a unit, a class or a layer answer."""
