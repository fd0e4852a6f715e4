//! Mail, always encrypted.

use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Message as Mail, Tokio1Executor,
    message::{Mailbox, header::ContentType},
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
    },
};

use super::{
    message::Message,
    post::{DEADLINE, Refused},
    settings::{Channel, MailTls},
};

/// A mail server as a channel names it.
pub struct Server {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    to: Vec<Mailbox>,
}

/// Looks over what a channel says of mail.
///
/// # Errors
/// The first thing that makes no sense.
pub fn check(channel: &Channel) -> Result<(), String> {
    let (from, to) = people(channel)?;
    if to.is_empty() || to.len() > 50 {
        return Err("to: 1 to 50 addresses".into());
    }
    drop(from);
    Ok(())
}

fn people(channel: &Channel) -> Result<(Mailbox, Vec<Mailbox>), String> {
    let one = |what: &str, text: &str| -> Result<Mailbox, String> {
        text.parse().map_err(|error| format!("{what}: {text:?} is no mail address: {error}"))
    };
    let from = one("from", channel.from.as_deref().unwrap_or_default())?;
    let to = channel.to.iter().map(|text| one("to", text)).collect::<Result<_, _>>()?;
    Ok((from, to))
}

impl Server {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// Where settings make no sense.
    pub fn new(channel: &Channel) -> Result<Self, String> {
        let (from, to) = people(channel)?;
        let host = channel.server.clone().ok_or("server is missing")?;
        let mut tls = TlsParameters::builder(host.clone());
        for certificate in
            channel.ca.as_deref().map(super::tls::certificates).transpose()?.unwrap_or_default()
        {
            let certificate =
                Certificate::from_der(certificate.to_vec()).map_err(|error| error.to_string())?;
            tls = tls.add_root_certificate(certificate);
        }
        let tls = tls.build().map_err(|error| format!("TLS: {error}"))?;
        let (usual, tls) = match channel.tls {
            MailTls::Starttls => (587, Tls::Required(tls)),
            MailTls::Tls => (465, Tls::Wrapper(tls)),
        };
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host)
            .port(channel.port.unwrap_or(usual))
            .tls(tls)
            .timeout(Some(DEADLINE));
        if let (Some(user), Some(password)) = (&channel.user, &channel.password) {
            transport = transport.credentials(Credentials::new(user.clone(), password.clone()));
        }
        Ok(Self { transport: transport.build(), from, to })
    }

    /// Sends one message to all.
    ///
    /// # Errors
    /// Why the server did not take it.
    pub async fn send(&self, message: &Message) -> Result<(), Refused> {
        let mut mail = Mail::builder()
            .from(self.from.clone())
            .subject(message.title())
            // The same each time, so that a mail that comes twice can be seen to be one.
            .message_id(Some(format!("<{}@swarmguard.invalid>", message.id)))
            .header(ContentType::TEXT_PLAIN);
        for to in &self.to {
            mail = mail.to(to.clone());
        }
        let mail = mail.body(message.text()).map_err(|error| Refused {
            why: format!("no mail can be made of it: {error}"),
            after: None,
            hopeless: true,
        })?;
        match tokio::time::timeout(DEADLINE * 2, self.transport.send(mail)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                let hopeless = error.is_permanent();
                Err(Refused { why: format!("the mail server: {error}"), after: None, hopeless })
            }
            Err(_) => Err(Refused::passing("the mail server did not answer in time")),
        }
    }
}
