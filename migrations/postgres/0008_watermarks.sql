-- Usage of every request that had begun by then, by the clock of the edge and so by the times inside event ids, is in the
-- books: a day before it has all its usage of this edge.
ALTER TABLE edges ADD COLUMN began_to timestamptz;

-- How far the books went for an edge that was behind with its journal: edges say so themselves now.
ALTER TABLE usage_ingest DROP COLUMN events_to;
