// The source's page streams: passes, what the destination makes room for, compression and the bandwidth limit.
#include "migrate/session/source/source_peer.h"
#include "migrate/session/wire/host_facts.h"
#include "migrate/session/wire/layout_wire.h"
#include "pageserver/run_beside.h"

namespace migrate {

void SourcePeer::send_layout(const TreeLayout& layout, unsigned round) {
  for (wire::Layout& part : to_wire(layout, round)) {
    Message message;
    *message.mutable_layout() = std::move(part);
    channel_->send(std::move(message));
  }
}

void SourcePeer::send_discards(std::span<const PageDiscard> discards) {
  for (wire::Discards& part : to_wire(discards)) {
    Message message;
    *message.mutable_discards() = std::move(part);
    channel_->send(std::move(message));
  }
}

PageTotals SourcePeer::send_pass(std::span<const PageSource> sources, const ShowPass& show) {
  PageTotals totals;
  pages_total_ = 0;
  for (const PageSource& source : sources) pages_total_ += source.pages();
  pass_began_ = Clock::now();
  bytes_before_pass_ = sender_->counters().bytes();
  wire_before_pass_ = sender_->counters().wire_bytes;
  passing_ = true;
  std::exception_ptr failure;
  try {
    failure = run_beside([&] { totals = sender_->send(sources); },
                         [&](int wake) {
                           watch(milliseconds(100), wake);
                           show_progress(show);
                         },
                         [&] { sender_->cancel(); });
  } catch (...) {
    passing_ = false;
    throw;
  }
  passing_ = false;
  if (failure) rethrow_with_peers_reason(failure);
  tell_codecs();
  return totals;
}

void SourcePeer::show_progress(const ShowPass& show) {
  tell_codecs();
  PageProgress progress;
  progress.bytes = sender_->counters().bytes() - bytes_before_pass_;
  progress.total_bytes = pages_total_ * kPageSize;
  progress.wire_bytes = sender_->counters().wire_bytes - wire_before_pass_;
  const double seconds = std::chrono::duration<double>(Clock::now() - pass_began_).count();
  progress.bandwidth = static_cast<double>(progress.bytes) / std::max(1e-3, seconds);
  show(progress);
}

/// A destination that gives up cuts the page streams, and says why on the control connection.
void SourcePeer::rethrow_with_peers_reason(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const Disconnected&) {
    constexpr std::chrono::seconds kLastWords{1};
    try {
      channel_->receive(Deadline::in(kLastWords));
    } catch (const Refusal&) {
      throw;
    } catch (const Error& e) {
      log_.debug("the destination says nothing more: {}", e.what());
    }
    throw;
  }
}

void SourcePeer::tell_pages_done(const PageTotals& totals) {
  Message done;
  done.mutable_pages_done()->set_pages(totals.pages);
  channel_->send(std::move(done));
}

void SourcePeer::agree_on_codecs(const wire::Hello& there) {
  codecs_ = options_.compress.mode == Compression::Mode::off ? CodecSet{} : page_codecs(there);
  if (options_.compress.mode == Compression::Mode::fixed) {
    const PageCodec wanted = options_.compress.fixed.codec;
    codecs_.lz4 = codecs_.lz4 && wanted == PageCodec::lz4;
    codecs_.zstd = codecs_.zstd && wanted == PageCodec::zstd;
  }
}

void SourcePeer::set_up_streams() {
  sender_->set_compression(options_.compress, codecs_);
  sender_->set_bandwidth_limit(options_.bandwidth_limit);
  if (options_.compress.mode == Compression::Mode::off) return;
  tell_codec(events_, sender_->codec(), options_.compress.mode == Compression::Mode::automatic && codecs_.any(),
             codecs_.any() ? "" : "the destination takes no pages that are packed so");
}

void SourcePeer::tell_codecs() {
  for (const CodecChange& change : sender_->take_codec_changes()) tell_codec(events_, change);
}

void SourcePeer::lift_bandwidth_limit() {
  if (options_.bandwidth_limit != 0) sender_->set_bandwidth_limit(0);
}

double SourcePeer::stopped_bandwidth() const { return options_.bandwidth_limit == 0 ? 0 : sender_->unlimited_rate(); }

}  // namespace migrate
