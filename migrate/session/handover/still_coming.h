// Trees that run here while pages of them are still at the host that they came from.
#pragma once

#include <string>

#include "core/base/types.h"
#include "migrate/session/journal/journal.h"

namespace migrate {

/// Of a session's copy here. 0: it is whole, or nobody is there who could tell.
uint64_t missing_pages(const JournalStore& store, const SessionId& id);

/// Refusal, naming session and host, if a task of the tree is one, or was forked from one, whose memory is not whole,
/// as the journals in `state_dir` and those who bring its pages say.
void refuse_while_pages_come(const std::string& state_dir, Pid root);

}  // namespace migrate
