// The exit code of a command that fails: 2 only if it was refused, before anything was touched.
#include "migrate/session/telling/failure.h"

#include <gtest/gtest.h>

#include "migrate/session/base/session.h"
#include "tests/session/in_child.h"
#include "tests/temp_dir.h"

namespace migrate {
namespace {

ReceiveOptions receiver(const std::string& state_dir) {
  ReceiveOptions options;
  options.listen = "127.0.0.1:0";
  options.link.insecure = true;
  options.state_dir = state_dir;
  return options;
}

TEST(Failure, OfAReceiverIsNoRefusal) {
  const ReceiveOptions options = receiver("/proc/nowhere");
  EXPECT_EQ(in_child([&] { return run_receive(options, *null_logger()); }), kFailed);
}

TEST(Failure, OfAReceiverThatIsRefusedHasItsOwnCode) {
  const TempDir folder;
  ReceiveOptions options = receiver(folder.path());
  options.link.insecure = false;
  EXPECT_EQ(in_child([&] { return run_receive(options, *null_logger()); }), kRefused);
}

TEST(Failure, OfResolveIsNoRefusal) {
  ResolveOptions options;
  options.state_dir = "/proc/nowhere";
  EXPECT_EQ(in_child([&] { return run_resolve(options, *null_logger()); }), kFailed);
  const TempDir folder;
  options.state_dir = folder.path();
  options.session = "no id";
  EXPECT_EQ(in_child([&] { return run_resolve(options, *null_logger()); }), kRefused);
}

}  // namespace
}  // namespace migrate
