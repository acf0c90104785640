// For the tests' own test: a restore that leaves something out, which a workload must notice.
#pragma once

#include <string>
#include <vector>

namespace google::protobuf {
class MessageLite;
}

namespace migrate {

/// Takes from an entry that was just read what MIGRATE_TEST_LEAVE_OUT names ("umask"), so that it is restored as if the
/// image did not have it. Does nothing without that variable.
void leave_out(google::protobuf::MessageLite& message);

/// What the variable says; "" as a rule. Throws Refusal with all names if there is no such subject.
const std::string& left_out();

/// All names that it may have.
std::vector<std::string> left_out_names();

}  // namespace migrate
