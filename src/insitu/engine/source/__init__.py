"""Operations inside a forward: named, read, edited and replaced like modules."""
