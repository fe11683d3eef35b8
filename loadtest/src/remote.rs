//! A generator in another process, such as one in a pod: orders in JSON, a line each, on its
//! standard input, and as many answers on its output.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::{
    generator::{GenerateError, Generator, Hand, Slice, Threads},
    kind::Load,
    tally::Tally,
};

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    Start(Threads),
    Prepare(Load),
    Run(usize, Slice),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Prepared(usize),
    Tally(Box<Tally>),
    Failed(String),
}

/// The end that gives orders.
#[derive(Debug)]
pub struct Remote<R, W> {
    answers: R,
    orders: W,
}

impl<R: BufRead, W: Write> Remote<R, W> {
    /// Starts a generator at the other end.
    ///
    /// # Errors
    /// When it cannot be started or talked to.
    pub fn start(answers: R, orders: W, threads: &Threads) -> Result<Self, GenerateError> {
        let mut remote = Self { answers, orders };
        remote.ask(&Order::Start(threads.clone()))?;
        Ok(remote)
    }

    fn ask(&mut self, order: &Order) -> Result<Answer, GenerateError> {
        let answer = self.exchange(order).map_err(GenerateError::Gone)?;
        match answer {
            Answer::Failed(said) => Err(GenerateError::Said(said)),
            other => Ok(other),
        }
    }

    fn exchange(&mut self, order: &Order) -> io::Result<Answer> {
        write_line(&mut self.orders, order)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl<R: BufRead, W: Write> Hand for Remote<R, W> {
    fn prepare(&mut self, load: &Load) -> Result<usize, GenerateError> {
        match self.ask(&Order::Prepare(load.clone()))? {
            Answer::Prepared(arm) => Ok(arm),
            _ => Err(GenerateError::Gone(io::ErrorKind::InvalidData.into())),
        }
    }

    fn run(&mut self, arm: usize, slice: Slice) -> Result<Tally, GenerateError> {
        match self.ask(&Order::Run(arm, slice))? {
            Answer::Tally(tally) => Ok(*tally),
            _ => Err(GenerateError::Gone(io::ErrorKind::InvalidData.into())),
        }
    }
}

/// Obeys until there are no more orders.
///
/// # Errors
/// When orders cannot be read or answered.
pub fn obey(orders: impl BufRead, mut answers: impl Write) -> io::Result<()> {
    let mut generator = None;
    for line in orders.lines() {
        let done = carry_out(&mut generator, serde_json::from_str(&line?)?);
        write_line(&mut answers, &done.unwrap_or_else(|error| Answer::Failed(chain(&error))))?;
    }
    Ok(())
}

fn carry_out(generator: &mut Option<Generator>, order: Order) -> Result<Answer, GenerateError> {
    match (order, generator) {
        (Order::Start(threads), generator) => {
            *generator = Some(Generator::start(&threads)?);
            Ok(Answer::Prepared(0))
        }
        (Order::Prepare(load), Some(generator)) => Ok(Answer::Prepared(generator.prepare(&load)?)),
        (Order::Run(arm, slice), Some(generator)) => {
            Ok(Answer::Tally(Box::new(generator.run(arm, slice)?)))
        }
        (_, None) => Err(GenerateError::Unknown(0)),
    }
}

fn chain(error: &GenerateError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn write_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}
