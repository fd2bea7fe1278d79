//! A program on a channel: its three streams, its end, its terminal.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use russh::server::{Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::pty::{self, Master, Size};
use crate::machine::Machine;

/// How much is read at once from a process or a socket.
pub const CHUNK: usize = 64 * 1024;
/// How much a pipe to a process holds; the default of 64 KiB costs a switch each.
const PIPE: usize = 1024 * 1024;
/// How long the rest of the output may take before the exit status goes first.
const OUTPUT_GRACE: Duration = Duration::from_millis(100);

/// The signals that SSH has names for.
const SIGNALS: &[(Sig, Signal)] = &[
    (Sig::ABRT, Signal::ABORT),
    (Sig::ALRM, Signal::ALARM),
    (Sig::FPE, Signal::FPE),
    (Sig::HUP, Signal::HUP),
    (Sig::ILL, Signal::ILL),
    (Sig::INT, Signal::INT),
    (Sig::KILL, Signal::KILL),
    (Sig::PIPE, Signal::PIPE),
    (Sig::QUIT, Signal::QUIT),
    (Sig::SEGV, Signal::SEGV),
    (Sig::TERM, Signal::TERM),
    (Sig::USR1, Signal::USR1),
];

/// What a client asked to run.
pub struct Request {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub terminal: Option<(String, Size)>,
    /// Exit signals can only be sent through the connection.
    pub handle: Handle,
}

/// What a client may send while it runs.
pub enum Control {
    Resize(Size),
    Signal(Sig),
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

struct Running {
    child: Child,
    input: Option<Writer>,
    output: Option<Reader>,
    errors: Option<Reader>,
    terminal: Option<Master>,
}

/// Starts it and leaves it running; the sender reaches it while its channel is open.
pub fn start(
    machine: &Arc<Machine>,
    channel: Channel<Msg>,
    request: Request,
) -> io::Result<mpsc::UnboundedSender<Control>> {
    if machine.dead.is_cancelled() {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    let handle = request.handle.clone();
    let running = spawn(machine, request)?;
    let (sender, receiver) = mpsc::unbounded_channel();
    machine
        .tasks
        .spawn(attend(running, channel, handle, receiver, Arc::clone(machine)));
    Ok(sender)
}

fn spawn(machine: &Machine, mut request: Request) -> io::Result<Running> {
    let terminal = match request.terminal.take() {
        Some((term, size)) => {
            request.env.push(("TERM".to_owned(), term));
            Some(pty::open(machine, size)?)
        }
        None => None,
    };
    let argv: Vec<&str> = request.argv.iter().map(String::as_str).collect();
    let mut command = machine.command(&argv, &request.env, terminal.is_some());
    if let Some(terminal) = terminal {
        let [stdin, stdout, stderr] = terminal.program;
        return Ok(Running {
            child: command.stdin(stdin).stdout(stdout).stderr(stderr).spawn()?,
            input: Some(Box::new(terminal.input)),
            output: Some(Box::new(terminal.output)),
            errors: None,
            terminal: Some(terminal.master),
        });
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    if let Some(input) = &input {
        let _ = rustix::pipe::fcntl_setpipe_size(input, PIPE);
    }
    if let Some(output) = &output {
        let _ = rustix::pipe::fcntl_setpipe_size(output, PIPE);
    }
    Ok(Running {
        child,
        input: input.map(|x| Box::new(x) as Writer),
        output: output.map(|x| Box::new(x) as Reader),
        errors: errors.map(|x| Box::new(x) as Reader),
        terminal: None,
    })
}

/// Carries the streams until the program has ended and all is said.
async fn attend(
    running: Running,
    channel: Channel<Msg>,
    handle: Handle,
    mut control: mpsc::UnboundedReceiver<Control>,
    machine: Arc<Machine>,
) {
    let dead = machine.dead.clone();
    let Running {
        mut child,
        input,
        output,
        errors,
        mut terminal,
    } = running;
    let group = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw);
    let (reader, writer) = channel.split();
    let writer = Arc::new(writer);
    // Cancelled when the client has closed the channel or the machine has died.
    let gone = dead.child_token();
    let inwards = tokio::spawn(feed(reader, input, gone.clone(), Arc::clone(&machine)));
    let mut outputs = JoinSet::new();
    for (stream, ext) in [(output, None), (errors, Some(1))] {
        if let Some(stream) = stream {
            let copy = drain(
                stream,
                Arc::clone(&writer),
                ext,
                gone.clone(),
                Arc::clone(&machine),
            );
            outputs.spawn(copy);
        }
    }
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            Some(message) = control.recv() => match message {
                Control::Resize(size) => if let Some(master) = &terminal { master.resize(size) },
                Control::Signal(signal) => send_signal(group, &signal),
            },
            // The kernel hangs up on a terminal without a master: let go of ours.
            () = gone.cancelled(), if terminal.is_some() => terminal = None,
        }
    };
    drop(terminal);
    if !dead.is_cancelled() {
        finish(&writer, &handle, status, &mut outputs, &gone).await;
    }
    outputs.shutdown().await;
    inwards.abort();
}

/// Says how it ended, after its output if that is there soon, then closes.
async fn finish(
    writer: &ChannelWriteHalf<Msg>,
    handle: &Handle,
    status: io::Result<ExitStatus>,
    outputs: &mut JoinSet<()>,
    gone: &CancellationToken,
) {
    let all_out = async { while outputs.join_next().await.is_some() {} };
    let drained = tokio::time::timeout(OUTPUT_GRACE, all_out).await.is_ok();
    if gone.is_cancelled() {
        return;
    }
    report(writer, handle, status).await;
    if !drained {
        // A descendant holds the output, or it is a lot: the channel stays for it, as with OpenSSH.
        while outputs.join_next().await.is_some() {}
    }
    if !gone.is_cancelled() {
        let _ = writer.eof().await;
        let _ = writer.close().await;
    }
}

async fn report(writer: &ChannelWriteHalf<Msg>, handle: &Handle, status: io::Result<ExitStatus>) {
    if let Some(signal) = status.as_ref().ok().and_then(ExitStatus::signal) {
        let _ = handle
            .exit_signal_request(
                writer.id(),
                signal_name(signal),
                false,
                String::new(),
                String::new(),
            )
            .await;
        return;
    }
    let code = status.ok().and_then(|s| s.code()).unwrap_or(255);
    let _ = writer.exit_status(u32::try_from(code).unwrap_or(255)).await;
}

/// From the client to the process. Drains on after the process stopped reading:
/// an undrained channel stalls its whole connection.
async fn feed(
    mut reader: ChannelReadHalf,
    mut input: Option<Writer>,
    gone: CancellationToken,
    machine: Arc<Machine>,
) {
    let _closes = gone.clone().drop_guard();
    loop {
        let message = tokio::select! { () = gone.cancelled() => return, message = reader.wait() => message };
        match message {
            Some(ChannelMsg::Data { data }) => {
                machine.tap(&data);
                let Some(stream) = &mut input else { continue };
                let wrote = tokio::select! {
                    () = gone.cancelled() => return,
                    wrote = stream.write_all(&data) => wrote,
                };
                if wrote.is_err() {
                    input = None;
                }
            }
            Some(ChannelMsg::Eof) => input = None,
            Some(ChannelMsg::Close) | None => return,
            Some(_) => {}
        }
    }
}

/// From the process to the client, as fast as the client's window allows.
async fn drain(
    mut stream: Reader,
    writer: Arc<ChannelWriteHalf<Msg>>,
    ext: Option<u32>,
    gone: CancellationToken,
    machine: Arc<Machine>,
) {
    let copy = async {
        loop {
            let mut chunk = bytes::BytesMut::with_capacity(CHUNK);
            let read = stream.read_buf(&mut chunk).await;
            if !matches!(read, Ok(n) if n > 0) {
                return;
            }
            machine.tap(&chunk);
            let sent = match ext {
                None => writer.data_bytes(chunk.freeze()).await,
                Some(ext) => writer.extended_data_bytes(ext, chunk.freeze()).await,
            };
            if sent.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = gone.cancelled() => {}, () = copy => {} }
}

fn send_signal(group: Option<Pid>, signal: &Sig) {
    let number = SIGNALS
        .iter()
        .find(|(name, _)| std::mem::discriminant(name) == std::mem::discriminant(signal))
        .map(|(_, number)| *number);
    if let (Some(group), Some(number)) = (group, number) {
        let _ = rustix::process::kill_process_group(group, number);
    }
}

fn signal_name(number: i32) -> Sig {
    let known = SIGNALS.iter().find(|(_, signal)| signal.as_raw() == number);
    known.map_or_else(
        || Sig::Custom(format!("{number}@openssh.com")),
        |(name, _)| name.clone(),
    )
}
