-- Usage of every request that had begun by then, by the clock of the edge and so by the times inside event ids, is in the
-- books: a day before it has all its usage of this edge.
ALTER TABLE edges ADD COLUMN began_to timestamptz;
