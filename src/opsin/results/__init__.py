"""What techniques give: data that draws, saves and loads itself."""
