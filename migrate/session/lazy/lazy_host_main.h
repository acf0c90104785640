// The verb `guardian-lazy STATE_DIR SESSION PEER [WORD...]`: the lazy host of a session.
#pragma once

#include "core/base/log.h"

namespace migrate {

/// Descriptor 3 is the guardian's end, 4 the socket where agents come; the words are words_of() the receiver's
/// connections. PEER: the name in the source's certificate.
int run_lazy_host(int argc, char** argv, Logger& log);

}  // namespace migrate
