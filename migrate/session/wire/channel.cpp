#include "migrate/session/wire/channel.h"

#include <limits.h>

#include <algorithm>
#include <cstring>

#include "core/image/bounded_parse.h"
#include "migrate/session/wire/stream_token.h"

namespace migrate {
namespace {

constexpr int kMaxFiles = 100'000;
constexpr int kMaxUses = 500'000;
constexpr int kMaxPorts = 10'000;
constexpr int kMaxPids = 100'000;
constexpr int kMaxEnds = 128;  // of the kernel's mappings in a task, which are some pages in all
constexpr size_t kMaxPath = 4096;
constexpr size_t kMaxText = 4096;
constexpr int kMaxRuns = 50'000;                 // layout_wire.cpp sends no more at a time
constexpr int64_t kMaxClock = int64_t{1} << 62;  // nanoseconds: sums of two stay numbers

void require(bool good, const char* why) {
  if (!good) throw Corrupt("a message of the peer", why);
}

void check_text(const std::string& text) { require(text.size() <= kMaxText, "a text is too long"); }

void check_hello(const wire::Hello& hello) {
  require(hello.features_size() <= 256 && hello.needs_size() <= 256 && hello.cpu_flags_size() <= 4096,
          "too many features");
  for (const auto* list : {&hello.features(), &hello.needs(), &hello.cpu_flags()}) {
    for (const std::string& text : *list) require(text.size() <= 64, "the name of a feature is too long");
  }
  for (const std::string* text :
       {&hello.program(), &hello.host(), &hello.machine(), &hello.kernel(), &hello.boot_id()}) {
    require(text->size() <= 256, "a name in the greeting is too long");
  }
}

/// Returns by how many it is held.
int check_file(const wire::Check::File& file, int credentials) {
  require(file.path().size() <= kMaxPath && file.probe_path().size() <= kMaxPath && file.probe_content().size() <= 64,
          "a path is too long");
  require(file.path().find('\0') == std::string::npos && file.probe_path().find('\0') == std::string::npos,
          "a path holds a zero byte");
  int holders = 0;
  for (const auto& use : file.uses()) {
    holders += 1 + use.holders_size();
    require(std::ranges::all_of(use.holders(), [&](uint32_t n) { return n < static_cast<uint32_t>(credentials); }),
            "a file is held by nobody that is known");
  }
  return holders;
}

void check_check(const wire::Check& check) {
  require(check.files_size() <= kMaxFiles && check.made_size() <= kMaxFiles && check.credentials_size() <= kMaxPids &&
              check.ports_size() <= kMaxPorts && check.pids_size() <= kMaxPids && check.uids_size() <= kMaxPids &&
              check.gids_size() <= kMaxPids && check.privileges_size() <= kMaxPids &&
              check.strangers_size() <= kMaxPids && check.kernel_mappings_size() <= kMaxPids,
          "too many files, ports or tasks");
  for (const auto& layout : check.kernel_mappings())
    require(layout.ends_size() <= kMaxEnds, "the kernel's mappings are too many");
  int uses = 0;
  for (const auto* files : {&check.files(), &check.made()})
    for (const auto& file : *files) uses += check_file(file, check.credentials_size());
  require(uses <= kMaxUses, "too many tasks have too many files");
  for (const auto& who : check.credentials()) require(who.groups_size() <= NGROUPS_MAX, "too many groups");
  for (const auto& port : check.ports()) {
    require(port.port() <= 65535 && (port.address().size() == 4 || port.address().size() == 16),
            "an address is no address");
  }
}

bool possible_clock(int64_t ns) { return ns >= 0 && ns <= kMaxClock; }

void check_begin(const wire::Begin& begin) {
  check_text(begin.label());
  require(begin.streams() >= 1 && begin.streams() <= kMaxPageStreams, "an impossible number of streams");
  require(possible_clock(begin.monotonic_ns()) && possible_clock(begin.boottime_ns()) &&
              possible_clock(begin.at_destination_ns()),
          "an impossible time");
}

void check_tokens(const google::protobuf::RepeatedPtrField<std::string>& tokens) {
  require(tokens.size() <= kMaxPageStreams, "too many tokens");
  for (const std::string& token : tokens)
    require(token.size() == std::tuple_size_v<StreamToken>, "a token is not 16 bytes long");
}

}  // namespace

void check_bounds(const wire::Message& message) {
  require(!message.has_session() || message.session().size() == 16, "a session id is not 16 bytes long");
  switch (message.body_case()) {
    case wire::Message::kHello:
      return check_hello(message.hello());
    case wire::Message::kCheck:
      return check_check(message.check());
    case wire::Message::kCheckReply:
      require(message.check_reply().refusals_size() <= 1000, "too many refusals");
      for (const std::string& r : message.check_reply().refusals()) check_text(r);
      return;
    case wire::Message::kRefused:
      return check_text(message.refused().sentence());
    case wire::Message::kAbort:
      return check_text(message.abort().reason());
    case wire::Message::kAnswer:
      check_text(message.answer().given_up());
      return check_text(message.answer().reason());
    case wire::Message::kWhole:
      return check_text(message.whole().given_up());
    case wire::Message::kBegin:
      return check_begin(message.begin());
    case wire::Message::kBegun:
      return check_tokens(message.begun().stream_tokens());
    case wire::Message::kFeed:
      return require(message.feed().streams() >= 2 && message.feed().streams() <= kMaxPageStreams,
                     "an impossible number of streams");
    case wire::Message::kFeeding:
      return check_tokens(message.feeding().stream_tokens());
    case wire::Message::kLayout:
      return require(message.layout().tasks_size() + message.layout().objects_size() <= kMaxPids, "too many tasks");
    case wire::Message::kLayoutReady:
      return require(message.layout_ready().cold_size() <= kMaxPids, "too many memories");
    case wire::Message::kFillReady:
      return require(message.fill_ready().cold_size() <= kMaxPids, "too many memories");
    case wire::Message::kDiscards:
      return require(message.discards().runs_size() <= kMaxRuns, "too many discarded pages at a time");
    case wire::Message::kMissing:
      return require(message.missing().runs_size() <= kMaxRuns, "too many missing pages at a time");
    case wire::Message::kHuge:
      return require(message.huge().runs_size() <= kMaxRuns, "too many huge pages at a time");
    case wire::Message::kClockPong:
      return require(possible_clock(message.clock_pong().monotonic_ns()), "an impossible time");
    case wire::Message::kImagesPart:
      return require(message.images_part().data().size() <= (1 << 20), "a part of the images is too long");
    case wire::Message::BODY_NOT_SET:
      throw Corrupt("a message of the peer", "it is of an unknown kind");
    default:
      return;
  }
}

SessionId session_of(const wire::Message& message) {
  SessionId id{};
  if (message.session().size() != id.size()) throw Corrupt("a message of the peer", "a session without an id");
  std::memcpy(id.data(), message.session().data(), id.size());
  return id;
}

ControlChannel::ControlChannel(std::unique_ptr<Stream> stream) : frames_(std::move(stream), kFrameLimit) {}

void ControlChannel::open(const Deadline& deadline) { frames_.exchange_preface(deadline); }

void ControlChannel::set_session(const SessionId& id, uint64_t epoch) {
  session_ = id;
  epoch_ = epoch;
}

void ControlChannel::send(wire::Message message) {
  if (session_) {
    message.set_session(session_->data(), session_->size());
    message.set_epoch(epoch_);
  }
  frames_.send(static_cast<uint16_t>(message.body_case()), message.SerializeAsString());
}

wire::Message ControlChannel::receive(const Deadline& deadline) {
  std::optional<wire::Message> message = receive_unless_over(deadline);
  if (!message) throw Disconnected("the peer " + stream().peer() + " ended the connection");
  return std::move(*message);
}

std::optional<wire::Message> ControlChannel::receive_unless_over(const Deadline& deadline) {
  for (;;) {
    const std::optional<Frame> frame = frames_.recv(deadline);
    if (!frame) return std::nullopt;
    wire::Message message;
    if (!parse_bounded(message, frame->payload)) throw Corrupt("a message of the peer", "it does not parse");
    if (message.body_case() == wire::Message::BODY_NOT_SET && (frame->flags & Frame::kOptional) != 0) continue;
    check_bounds(message);
    if (message.body_case() != frame->type) throw Corrupt("a message of the peer", "its frame is of another kind");
    if (message.body_case() == wire::Message::kRefused) {
      const std::string sentence = "the peer " + stream().peer() + " refuses: " + message.refused().sentence();
      peer_refused_ = !message.refused().stale();
      if (message.refused().stale()) throw StaleEpoch(sentence);
      throw Refusal(sentence, "nothing was changed there");
    }
    if (session_ &&
        !std::equal(session_->begin(), session_->end(), reinterpret_cast<const std::byte*>(message.session().data()),
                    reinterpret_cast<const std::byte*>(message.session().data()) + message.session().size())) {
      throw Corrupt("a message of the peer", "it belongs to another session");
    }
    return message;
  }
}

wire::Message ControlChannel::expect(wire::Message::BodyCase kind, const Deadline& deadline) {
  wire::Message message = receive(deadline);
  if (message.body_case() == wire::Message::kAbort && kind != wire::Message::kAbort) {
    throw Error("the peer " + stream().peer() + " gave up: " + message.abort().reason());
  }
  if (message.body_case() != kind) throw Corrupt("a message of the peer", "it is out of turn");
  return message;
}

void ControlChannel::refuse(const std::string& sentence, bool stale) noexcept {
  try {
    wire::Message message;
    message.mutable_refused()->set_sentence(sentence.substr(0, kMaxText));
    message.mutable_refused()->set_stale(stale);
    send(std::move(message));
    frames_.finish();
  } catch (const std::exception&) {
    // It will notice by itself that we are gone.
  }
}

void ControlChannel::finish() noexcept {
  try {
    frames_.finish();
  } catch (const std::exception&) {
    // The goodbye is a courtesy.
  }
}

}  // namespace migrate
