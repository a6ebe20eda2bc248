"""The training store on disk: layout, writer, reader. No torch here."""
