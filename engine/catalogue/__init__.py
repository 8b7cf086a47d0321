"""The models of a workspace: found in place, named, hashed, resolved, verified, forgotten.

    places -> walk -> recognise -> name -> card      (a scan: files in, entries out; nothing is copied or changed)
                                    |
                                 register -> store

`catalogue.Catalogue` is the door for the rest of the engine. Invariant: nothing in here writes into a folder that is
not the workspace, and only `removal` deletes.
"""
