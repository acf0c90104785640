#include "lazypages/feed/feed_streams.h"

#include <sys/socket.h>

namespace migrate {

void set_up_fill_stream(Stream& stream, int option) noexcept {
  ::setsockopt(stream.fd(), SOL_SOCKET, option, &kFillBuffer, sizeof kFillBuffer);
  stream.set_idle_timeout(kFillPatience);
}

void FeedFailure::note(std::exception_ptr why) noexcept {
  Kind kind = Kind::ours;
  bool explains = kind_ == Kind::cut;
  try {
    std::rethrow_exception(why);
  } catch (const Disconnected&) {
    kind = Kind::cut;
    explains = false;
  } catch (const TimedOut&) {
    kind = Kind::other;
  } catch (const Cancelled&) {  // after a cut our other threads are
    kind = Kind::other;
    explains = false;
  } catch (const PeerFailed&) {
    kind = Kind::other;
  } catch (...) {
  }
  if (kind_ != Kind::none && !explains) return;
  kind_ = kind;
  failure_ = std::move(why);
}

std::string FeedFailure::sentence() const {
  try {
    std::rethrow_exception(failure_);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "something unknown was thrown";
  }
}

}  // namespace migrate
