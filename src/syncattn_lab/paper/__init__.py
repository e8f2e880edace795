"""The paper's figures, table and claims, measured: `syncattn paper`."""
