"""The gateway at load: beside dcmtk's storescp, which only writes files; by HTTP on one core; where its time goes."""
