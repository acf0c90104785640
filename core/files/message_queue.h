// POSIX message queues (mq_overview(7)): files of a file system of their own, which nobody needs to have mounted.
#pragma once

#include "core/files/open_file.h"

namespace migrate {

/// By the file system that it is on. Asks of those only whose path could be a queue's ("/name").
bool is_message_queue(const OpenFile& file);

}  // namespace migrate
