#include "migrate/session/destination/receive_session.h"

#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "core/freeze/memory_room.h"
#include "migrate/session/destination/accept_streams.h"
#include "migrate/session/destination/destination_checks.h"
#include "migrate/session/destination/feed_intake.h"
#include "migrate/session/telling/fault.h"
#include "migrate/session/wire/host_facts.h"
#include "migrate/session/wire/link_words.h"
#include "migrate/session/wire/missing_wire.h"
#include "pageserver/page_stream.h"

namespace migrate {
namespace {

using wire::GuardianReply;
using wire::GuardianRequest;

constexpr uint64_t kImagesLimit = uint64_t{1} << 30;

}  // namespace

ReceiveSession::ReceiveSession(const ReceiveContext& context, ControlChannel& channel)
    : c_(context), options_(context.options), channel_(channel), questions_(context, channel) {}

int ReceiveSession::run(Message first) {
  try {
    const Message begin = questions_.answer(std::move(first));
    if (begin.body_case() != Message::kBegin) return kRefused;
    start(begin);
    accept_streams(begin.begin());
    if (begin.begin().precopy()) receive_rounds();
    c_.interrupt.throw_if_interrupted();
    receive_images();
    c_.interrupt.throw_if_interrupted();
    prepare();
    c_.interrupt.throw_if_interrupted();
    receive_pages();
    c_.interrupt.throw_if_interrupted();
    finish();
    c_.interrupt.throw_if_interrupted();
    channel_.stream().set_stop(nullptr);
  } catch (const std::exception& e) {
    return give_up(e);
  }
  // From PREPARED on, failures leave the session to the source's word.
  try {
    say_ready();
    return await_decision();
  } catch (const std::exception& e) {
    return in_doubt(e);
  }
}

Deadline ReceiveSession::answer_by() const { return Deadline::in(options_.timeouts.answer); }

void ReceiveSession::start(const Message& message) {
  id_ = session_of(message);
  peer_epoch_ = message.epoch();
  label_ = message.begin().label();
  std::replace_if(
      label_.begin(), label_.end(), [](unsigned char ch) { return ch < 32 || ch == 127; }, '?');
  lazy_ = message.begin().lazy();
  channel_.set_session(id_, peer_epoch_);
  guardian_.emplace(c_.spawn);
  try {
    guardian_->ask(start_request(message.begin()), answer_by(), &c_.interrupt.stop());
  } catch (const Refusal&) {
    not_ours_ = true;  // it took back what it had made; a journal of that id is another session's
    throw;
  }
  watch_.emplace(options_.state_dir, id_, Role::destination, guardian_->death_fd());
  const std::vector<StreamToken> tokens = make_stream_tokens(message.begin().streams());
  c_.daemon.expect_streams(tokens);
  Message begun;
  begun.mutable_begun();
  for (const StreamToken& token : tokens) begun.mutable_begun()->add_stream_tokens(token.data(), token.size());
  channel_.send(std::move(begun));
  c_.events.event("begin", "receiving " + label_ + " from " + channel_.stream().peer(),
                  {{"session", to_hex(id_)}, {"label", label_}});
  fault_point("destination-agent.begun");
}

GuardianRequest ReceiveSession::start_request(const wire::Begin& begin) const {
  GuardianRequest request;
  GuardianRequest::StartDestination* s = request.mutable_start_destination();
  s->set_state_dir(options_.state_dir);
  s->set_session(to_hex(id_));
  s->set_peer(channel_.stream().peer());
  s->set_peer_name(channel_.stream().peer_name());
  s->set_peer_epoch(peer_epoch_);
  s->set_label(label_);
  s->set_root(options_.root);
  to_wire(identity_policy(options_), *s);
  *s->mutable_tree() = begin.tree();
  s->set_monotonic_ns(begin.monotonic_ns());
  s->set_boottime_ns(begin.boottime_ns());
  s->set_at_local_monotonic_ns(begin.at_destination_ns());
  s->set_max_tasks(options_.max_tasks);
  if (options_.cgroup) s->set_cgroup(*options_.cgroup);
  s->set_lazy(lazy_);
  if (lazy_)
    for (const std::string& word : words_of(options_.link)) s->add_link(word);
  s->set_timeout_ms(static_cast<uint32_t>(options_.timeouts.restore.count()));
  return request;
}

void ReceiveSession::accept_streams(const wire::Begin& begin) {
  const CodecSet codecs = options_.packed_pages ? codecs_from_wire(begin.page_codecs()) : CodecSet{};
  const uint64_t max_memory = options_.max_memory != 0 ? options_.max_memory : memory_available();
  intake_.emplace(accept_page_streams(c_, channel_, id_, begin.streams()), ReceiveLimits{.codecs = codecs});
  copy_.emplace(*guardian_, *intake_, c_.interrupt.stop(), options_.timeouts, label_, max_memory);
}

void ReceiveSession::receive_rounds() {
  for (;;) {
    c_.interrupt.throw_if_interrupted();
    Message message = channel_.receive(Deadline::in(options_.timeouts.restore));
    switch (message.body_case()) {
      case Message::kLayout:
        if (parts_.add(message.layout())) make_room_for_round();
        break;
      case Message::kDiscards:
        copy_->discard(message.discards());
        if (message.discards().last() && room_made_) {
          room_made_ = false;
          receive_pass();
          fault_point("destination-agent.round-received");
        }
        break;
      case Message::kReserve:
        room_made_ = false;  // no pages come for that layout while the tree runs
        reserve(message.reserve());
        break;
      case Message::kCheck:
        questions_.answer(message.check());
        break;
      default:
        if (served_beside(message)) break;
        next_ = std::move(message);
        return;
    }
  }
}

/// What does not belong to a round, nor to the images, and may come with both. False: it is something else.
bool ReceiveSession::served_beside(const Message& message) {
  switch (message.body_case()) {
    case Message::kFeed:
      let_feed_in(message);
      return true;
    case Message::kHuge:
      copy_->note_huge(message.huge());
      return true;
    default:
      return false;
  }
}

void ReceiveSession::make_room_for_round() {
  fault_point("destination-agent.layout-received");
  Message ready;
  for (const MemoryId memory : copy_->make_room(parts_.take()))
    to_wire(memory, *ready.mutable_layout_ready()->add_cold());
  ready.mutable_layout_ready();
  channel_.send(std::move(ready));
  room_made_ = true;
}

void ReceiveSession::reserve(const wire::Reserve& wanted) {
  copy_->reserve(wanted);
  Message reserved;
  reserved.mutable_reserved();
  channel_.send(std::move(reserved));
  fault_point("destination-agent.reserved");
}

wire::Message ReceiveSession::next_message(const Deadline& deadline) {
  if (!next_) return channel_.receive(deadline);
  Message message = std::move(*next_);
  next_.reset();
  return message;
}

void ReceiveSession::receive_images() {
  images_.reset(check(::memfd_create("migrate-images", MFD_CLOEXEC), "make", "a memory file"));
  uint64_t bytes = 0;
  for (bool all = false; !all;) {
    const Message message = next_message(Deadline::in(options_.timeouts.freeze + options_.timeouts.answer));
    switch (message.body_case()) {
      case Message::kAbort:
        throw Error("the source gave up: " + message.abort().reason());
      case Message::kDiscards:
        copy_->discard(message.discards());
        break;
      case Message::kMissing:
        note_missing(message.missing());
        break;
      case Message::kImagesPart:
        bytes += message.images_part().data().size();
        if (bytes > kImagesLimit) throw Corrupt("the images from the peer", "they are too large");
        write_full(images_.get(), as_bytes_of(message.images_part().data()), "the images");
        break;
      case Message::kImagesEnd:
        if (message.images_end().bytes() != bytes) throw Corrupt("the images from the peer", "some are missing");
        all = true;
        break;
      default:
        if (!served_beside(message)) throw Corrupt("a message of the peer", "it is out of turn");
    }
  }
  c_.events.event("restore-may-begin", "images are here: " + human_bytes(bytes),
                  {{"bytes", static_cast<int64_t>(bytes)}});
  signal_status(options_.status_fd);
  fault_point("destination-agent.images-received");
}

void ReceiveSession::let_feed_in(const Message& message) {
  if (!lazy_) throw Corrupt("a message of the peer", "it is out of turn");
  migrate::let_feed_in(c_, channel_, id_, message.feed());
}

void ReceiveSession::note_missing(const wire::Discards& part) {
  if (!lazy_) throw Corrupt("a message of the peer", "it is out of turn");
  missing_bound_.count(part);
  from_wire(part);
  missing_.MergeFrom(part);
}

void ReceiveSession::prepare() {
  Message ready;
  for (const MemoryId memory : copy_->prepare(images_)) to_wire(memory, *ready.mutable_fill_ready()->add_cold());
  ready.mutable_fill_ready();
  images_.reset();
  channel_.send(std::move(ready));
  fault_point("destination-agent.prepared-shells");
}

void ReceiveSession::receive_pages() {
  const PageTotals totals = receive_pass();
  c_.events.event("pages", human_bytes(totals.pages * kPageSize) + " received",
                  {{"bytes", static_cast<int64_t>(totals.pages * kPageSize)},
                   {"wire_bytes", static_cast<int64_t>(totals.wire_bytes)}});
  fault_point("destination-agent.pages-received");
}

PageTotals ReceiveSession::receive_pass() {
  std::optional<Message> said;
  PageTotals totals;
  try {
    totals = intake_->receive([&](int wake) {
      watch(std::chrono::milliseconds(50), wake);
      copy_->check_memory();
      if (!said && peer_speaks()) said = channel_.receive(answer_by());
      if (said && said->body_case() == Message::kAbort) throw Error("the source gave up: " + said->abort().reason());
      c_.events.progress("progress", "pages " + human_bytes(intake_->counters().bytes()) + " received",
                         {{"bytes", static_cast<int64_t>(intake_->counters().bytes())}});
    });
  } catch (const Disconnected&) {
    throw_if_given_up();
    throw;
  }
  const Message done = said ? *said : channel_.expect(Message::kPagesDone, answer_by());
  if (done.body_case() != Message::kPagesDone || done.pages_done().pages() != totals.pages) {
    throw Corrupt("the pages from the peer", "not as many came as were sent");
  }
  return totals;
}

/// A source that gives up cuts its streams first, and then says why.
void ReceiveSession::throw_if_given_up() {
  std::optional<Message> last;
  try {
    const Deadline deadline = Deadline::in(options_.timeouts.settle);
    do last = channel_.receive(deadline);
    while (last->body_case() != Message::kAbort);
  } catch (const Refusal&) {
    throw;
  } catch (const Error& e) {
    return c_.log.debug("the source, whose streams are cut: {}", e.what());
  }
  throw Error("the source gave up: " + last->abort().reason());
}

void ReceiveSession::finish() {
  intake_->forget_targets();
  GuardianRequest request;
  request.set_finish(true);
  finishing_ = true;
  if (lazy_) {
    uint64_t pages = 0;
    for (const wire::Discards::Run& run : missing_.runs()) pages += run.pages();  // each below 2^35, 4 million of them
    copy_->check_memory_with(pages > UINT64_MAX / kPageSize ? UINT64_MAX : pages * kPageSize);
  }
  guardian_->send(request);
  if (lazy_) guardian_->socket().send_blob(missing_);
  const GuardianReply reply = guardian_->await(Deadline::in(options_.timeouts.restore), &c_.interrupt.stop());
  tasks_ = reply.prepared();
  fault_point("destination-agent.prepared");
}

bool ReceiveSession::peer_speaks() const {
  pollfd p{channel_.fd(), POLLIN, 0};
  return channel_.buffered() || ::poll(&p, 1, 0) > 0;
}

void ReceiveSession::watch(std::chrono::milliseconds time, int wake) {
  c_.interrupt.throw_if_interrupted();
  std::array<pollfd, 2> p{pollfd{guardian_->death_fd(), POLLIN, 0}, pollfd{wake, POLLIN, 0}};
  ::poll(p.data(), p.size(), static_cast<int>(time.count()));
  guardian_->check_alive();
}

void signal_status(int fd) noexcept {
  if (fd < 0) return;
  const char nul = 0;
  if (::write(fd, &nul, 1) != 1) return;  // nobody listens: not our business
}

}  // namespace migrate
