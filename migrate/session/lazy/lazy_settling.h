// What a lazy host does about its session when the guardian is gone, which would have written down how it ended.
#pragma once

#include "migrate/session/journal/received_copy.h"
#include "migrate/session/journal/trees.h"

namespace migrate {

/// Of a host that holds nothing any more: all pages are there or all tasks have ended, or `end` says why pages never
/// came. Writes that into the journal, if nobody owns it. True: the host may leave, since the journal
/// says how it ended, or there is none (its folder is gone), or a copy that nobody opened the gate for is dead. Throws
/// Error if the journal cannot be read or written: to be tried again.
bool settle_without_guardian(JournalStore& store, TreeKeeper& keeper, const SessionId& id, const PagesEnd& end);

}  // namespace migrate
